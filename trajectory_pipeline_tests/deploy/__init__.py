"""The files of ``deploy/``: what they promise, and that their formats' own validators take them."""

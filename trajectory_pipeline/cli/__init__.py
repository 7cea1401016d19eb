"""The command ``trajectory-pipeline``: what is not a click in the UI.

Belongs here: words on a terminal, exit codes, and processes that are started and stopped. Does not belong here: any
work that a notebook or an asset would want too.
"""

"""Random histories of a source and of a pipeline, and the promise that the sinks come out right."""

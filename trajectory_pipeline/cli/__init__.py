"""The command ``trajectory-pipeline``: terminal output, exit codes and child processes, one module a command."""

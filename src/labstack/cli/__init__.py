"""The `labstack` command.

Modules here import nothing heavy at the top: each command imports what it needs when it runs, so that `--help` and
the commands that move roles do not wait for the training libraries.
"""

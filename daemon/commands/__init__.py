"""The `emdenoised` command: one module for each of its commands.

In: the command line. Out: lines on the terminal, pages for a lab book, an exit status.
Front door: `main.main`, the console script; it loads what takes long only for the command that needs it.
"""

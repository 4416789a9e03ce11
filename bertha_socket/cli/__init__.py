"""Commands.  `bertha` is main.py, `bertha-run` is run.py; each subcommand NAME is a module of that name.

A subcommand's module has `main(argv: Sequence[str]) -> int`, which takes the words after the subcommand's
name and returns the exit code.  `bertha` lists only those whose modules exist.
"""

"""The command line: one file per verb, with arguments, messages and exit codes but no logic."""

"""What is made of a finished run, on any machine: analyses, suggestions, the report page, the check of its files.

No stages: they need no cluster, no GPU and no order, and are made again in a minute.
"""

"""The command line (layer L7): parse, hand over to a workflow, present."""

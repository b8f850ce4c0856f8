"""The command line (layer L8): parse, hand over to a verb, present."""

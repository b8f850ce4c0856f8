"""The command line: parse, hand over to a verb, present."""

"""What a command would read, write and need, from its config and the headers of its files, for `doctor`.

- `inputs`: the files that exist, by what they are
- `refusals`: the checks that the command itself begins with
- `outputs`: the files that it would write, and their sizes
- `memory`: the memory that it would need, from measured rules
"""

"""Everything that is tested and measured on a GPU, as one command that can be resumed."""

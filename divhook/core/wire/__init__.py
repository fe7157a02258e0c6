"""Wire formats, one file per header. Parsers end in `_untrusted` and raise WireError, nothing else."""

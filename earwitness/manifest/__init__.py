"""Reading manifests: a stream of lines in, linted and rendered rows out."""

"""Clips: found, fetched, looked at, decoded.

`stat` asks storage what it knows of a clip, `fetch` brings its bytes, `probe` reads its header,
`decode` turns it into what the model hears, `workers` runs the last two in processes of their own.
"""

"""Open audio files, read by position: in frames of the file's own rate, with their channels.

`sound` has the interface. `libsndfile` reads most formats, `ffmpeg` decodes the others, and `joined` reads
several sounds in one file. This file stays empty.
"""

"""Structure of audio files: start and end of the audio in a file, independent of its header.

Decoders trust headers. Each module here reads the structure of some containers, quickly if it agrees with
the header and thoroughly if not, and returns the parts of the file to decode, one after the other. `find`
chooses the module. This file stays empty.
"""

"""Structure of audio files: where the sound of a file starts and ends, whatever its header states.

Decoders believe headers. Each module here reads the structure of some containers, cheaply where it agrees
with the header and thoroughly where it does not, and returns the parts of the file that are to be decoded
one after the other. `find` chooses the module. This file stays empty.
"""

"""Annotations: keys, chords, beats and notes, and the files that hold them.

`keys` and `chords` name the classes, `chords`, `beats` and `notes` read and write `.lab`, `.beats` and
MIDI files, and `problems` lists what is wrong in them. Times are seconds as annotated, never rounded
to frames. NumPy arrays throughout, no torch. Import from these modules.
"""

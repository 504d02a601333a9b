"""Annotations of keys, chords, beats, sections, melodies and notes, and their files.

`keys` and `chords` name the classes, `chords`, `beats`, `sections`, `melody` and `notes` read and write
`.lab`, `.beats`, text, CSV and MIDI files, and `problems` lists their errors. Times are seconds as annotated,
never rounded to frames. NumPy arrays throughout, no torch. Import from these modules.
"""

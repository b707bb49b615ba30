"""Hostile and damaged input for everything in openwork that reads: one page a kind of input.

A reader makes sound inputs once; then, again and again, it changes one and reads it. What may come out is an error that names
what is wrong, or a result that is what the input says. ``benchmarks/fuzz_files.py`` carries it out.
"""

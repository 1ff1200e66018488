"""The judge: what a dream is worth, measured against the simulator it was learned from.

`fidelity` compares frames, `actions` reads actions back, `drift` watches long dreams, `geometry` asks for one place;
each ends in one JSON line.
"""

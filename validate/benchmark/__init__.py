"""How long a decision takes, what takes the time, and how far that is from what the chip allows.

A wrong engine is fast for nothing, so each is judged before it is timed. Shapes decide what a figure means:
every figure stands under its profile's name, beside its precision, its device and its floor.
"""

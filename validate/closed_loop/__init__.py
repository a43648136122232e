"""What a bundle does: episodes in a simulator, beside those of the BF16 reference in the same scenes.

A cosine does not move a cup, and a success rate alone says little about precision. So every policy acts in
the same scenes from the same flow noise, and is also asked what it would have done wherever the reference
decided."""

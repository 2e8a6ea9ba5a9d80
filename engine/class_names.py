"""What the classes are called; apart from the losses, so that a program that only tells figures needs no torch."""

from __future__ import annotations

CLASS_NAMES = {2: ("negative", "positive"), 5: ("1 star", "2 stars", "3 stars", "4 stars", "5 stars")}

"""One image on several devices: the tokens of a call split over them, and the branches of guidance side by side."""

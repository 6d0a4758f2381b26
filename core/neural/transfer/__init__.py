"""Neural style transfer after Gatys, Ecker and Bethge (2015). Knows no files of weights."""

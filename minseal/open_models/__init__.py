"""Open weights, in and out. Foreign file formats are read by the packages made for them."""

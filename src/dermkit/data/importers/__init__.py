"""Any source of images becomes a data set folder."""

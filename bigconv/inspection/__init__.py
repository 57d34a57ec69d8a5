"""Looking at data, ours or not: what it is, what is in it, what is wrong, what mends it. numpy and Pillow."""

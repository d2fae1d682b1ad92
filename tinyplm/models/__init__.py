"""One file per paper. Importing this imports none of them."""

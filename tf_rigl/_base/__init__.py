"""The ground floor: what all rooms use, and what knows none of them."""

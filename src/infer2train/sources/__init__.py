"""What stands at an address: a user's data set replayed, or vectorised views of images, and how it is read."""

"""Those who are compared: a file each, with what they train, read and write by."""

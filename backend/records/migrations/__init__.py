"""The steps from one schema of the records to the next, oldest first, in versions/."""

"""From windows to a trained model: optimizer, schedule, the Lightning loop, and what it records and saves."""

"""From where the user's music lies to windows of samples with their labels."""

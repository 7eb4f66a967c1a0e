"""What training reads from corpora, in a seeded order."""

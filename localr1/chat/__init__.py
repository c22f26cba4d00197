"""The conversation: sessions, thinking, the terminal."""

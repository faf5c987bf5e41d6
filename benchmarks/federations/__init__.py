"""The arms of `communication.py`: federations that train networks of one macro-architecture on one split."""

"""Logs; metrics and traces will stand here. Never patient data."""

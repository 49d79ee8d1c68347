"""What the server remembers: cohorts, jobs, aliases. SQLAlchemy for rows, a folder for pixels; no domain logic."""

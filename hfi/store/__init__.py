"""The database: tables, sessions and verbs. The only package that knows SQLAlchemy's tables; callers get frozen dataclasses."""

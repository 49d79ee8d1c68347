"""Aliases of models: names like `production` that move between versions in one transaction."""

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from limner_server.state.database import AliasRow, writing


class AliasStore:
    """All aliases of one database; safe to use from several threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def of(self, model: str) -> dict[str, str]:
        """Version of each alias of a model."""
        with Session(self._engine) as session:
            rows = session.scalars(select(AliasRow).where(AliasRow.model == model).order_by(AliasRow.alias))
            return {row.alias: row.version for row in rows}

    def point(self, model: str, alias: str, version: str) -> None:
        """Point an alias at a version, wherever it pointed before."""
        with writing(self._engine, f"aliases of {model}") as session:
            session.merge(AliasRow(model=model, alias=alias, version=version))

"""Which server has which model version loaded, so that what one unloads goes from all."""

from sqlalchemy import Engine, delete, select
from sqlalchemy.orm import Session

from limner_server.state.database import LoadedRow


class LoadedStore:
    """What this server and the others of its database have loaded; safe to use from several threads."""

    def __init__(self, engine: Engine, server: str) -> None:
        self._engine = engine
        self._server = server

    def add(self, model: str, version: int) -> None:
        """Note that this server has loaded a version."""
        with Session(self._engine) as session:
            session.merge(LoadedRow(server=self._server, model=model, version=version))
            session.commit()

    def here(self) -> set[tuple[str, int]]:
        """Return what this server has loaded and nobody has unloaded since."""
        with Session(self._engine) as session:
            rows = session.scalars(select(LoadedRow).where(LoadedRow.server == self._server))
            return {(row.model, row.version) for row in rows}

    def drop(self, model: str, version: int) -> bool:
        """Unload a version from every server; return whether any had it."""
        with Session(self._engine) as session:
            gone = delete(LoadedRow).where(LoadedRow.model == model, LoadedRow.version == version)
            servers = session.scalars(gone.returning(LoadedRow.server)).all()
            session.commit()
        return bool(servers)

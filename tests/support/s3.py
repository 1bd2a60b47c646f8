"""A local S3."""

from moto.server import ThreadedMotoServer


class Server(ThreadedMotoServer):
    """A store that can be switched off; it keeps what it holds."""

    def stop(self) -> None:
        super().stop()
        assert self._server is not None
        self._port = self._server.server_address[1]
        self._server.server_close()

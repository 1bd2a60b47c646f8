import logging
from collections.abc import Iterator

import pytest
import s3fs

from support.s3 import Server


@pytest.fixture(scope="session")
def s3() -> Iterator[Server]:
    """A local S3, which `s3://` finds."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = Server("127.0.0.1", 0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        environment.setenv("AWS_ACCESS_KEY_ID", "nobody")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield server
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()

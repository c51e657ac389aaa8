pytest_plugins = ["tests.servers", "tests.valkey", "tests.tiny"]

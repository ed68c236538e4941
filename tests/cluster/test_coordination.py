"""What is relied on of JAX's private names: the coordination service, and the events that tell of compiling.

A new version of JAX that moves one of them fails here first, not in the middle of a job of many processes.
"""

import inspect
import uuid

import jax
import jax.numpy as jnp
from jax._src import distributed

from shike_jax.cluster import coordination
from shike_jax.cluster.coordination import CompileTime


def test_a_single_process_has_no_service():
    assert coordination.client() is None
    assert coordination.coordinator_address() is None


def test_the_state_of_the_service_has_the_names_that_are_read():
    state = distributed.global_state
    assert {"client", "coordinator_address"} <= set(vars(type(state))) | set(vars(state))


def test_the_client_has_the_calls_that_are_made():
    """The class of the client, which exists without a service; its methods are those that `peers` calls."""
    from jax._src.lib import _jax

    client = _jax.DistributedRuntimeClient
    for name in ("key_value_set", "key_value_try_get", "key_value_dir_get", "wait_at_barrier"):
        assert callable(getattr(client, name)), name
    assert "allow_overwrite" in client.key_value_set.__doc__
    assert "timeout_in_ms" in client.wait_at_barrier.__doc__


def test_initialisation_takes_a_heartbeat_timeout():
    assert "heartbeat_timeout_seconds" in inspect.signature(jax.distributed.initialize).parameters


def test_compiling_is_counted_and_running_is_not():
    shift = uuid.uuid4().int % 1000  # a program that no cache holds
    function = jax.jit(lambda x: jnp.sin(x) + shift)
    before = CompileTime.total
    function(jnp.ones(3)).block_until_ready()
    compiled = CompileTime.total
    assert compiled > before
    function(jnp.ones(3)).block_until_ready()
    assert CompileTime.total == compiled

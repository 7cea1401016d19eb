"""The columns of Letta's tables by version: facts, read off the ORM models (``letta/orm/*.py``) of the PyPI wheels.

Columns of mixins and of the audit base class are included. Between these versions columns were only ever added.
"""

VERSIONS = ("0.12.0", "0.14.0", "0.16.1", "0.16.8")

_AUDIT = "created_at updated_at is_deleted _created_by_id _last_updated_by_id"

_IN_0_12_0 = {
    "runs": (
        "agent_id background base_template_id callback_error callback_sent_at callback_status_code "
        "callback_url completed_at deployment_id id metadata_ organization_id project_id request_config "
        f"status stop_reason template_id total_duration_ns ttft_ns {_AUDIT}"
    ),
    "steps": (
        "agent_id completion_tokens completion_tokens_details context_window_limit error_data error_type "
        "feedback id model model_endpoint organization_id origin project_id prompt_tokens provider_category "
        f"provider_id provider_name run_id status stop_reason tags tid total_tokens trace_id {_AUDIT}"
    ),
    "messages": (
        "agent_id approval_request_id approve batch_item_id content denial_reason group_id id is_err model "
        "name organization_id otid role run_id sender_id sequence_id step_id text tool_call_id tool_calls "
        f"tool_returns {_AUDIT}"
    ),
    "run_metrics": (
        "agent_id base_template_id deployment_id id num_steps organization_id project_id run_ns run_start_ns "
        f"template_id {_AUDIT}"
    ),
    "step_metrics": (
        "agent_id base_template_id id llm_request_ns llm_request_start_ns organization_id project_id "
        f"provider_id run_id step_ns step_start_ns template_id tool_execution_ns {_AUDIT}"
    ),
    "provider_traces": (f"id organization_id request_json response_json step_id {_AUDIT}"),
    "agents": (
        "_vector_db_namespace agent_type base_template_id deployment_id description embedding_config "
        "enable_sleeptime entity_id hidden id last_run_completion last_run_duration_ms llm_config "
        "max_files_open message_buffer_autoclear message_ids metadata_ name organization_id "
        f"per_file_view_window_char_limit project_id response_format system template_id timezone tool_rules {_AUDIT}"
    ),
    "agents_tags": ("agent_id tag"),
    "tools": (
        "args_json_schema default_requires_approval description id json_schema metadata_ name "
        "npm_requirements organization_id pip_requirements return_char_limit source_code source_type tags "
        f"tool_type {_AUDIT}"
    ),
    "tools_agents": ("agent_id tool_id"),
}

_ADDED: dict[str, dict[str, str]] = {
    "0.14.0": {
        "messages": "approvals",
        "run_metrics": "tools_used",
        "agents": "last_stop_reason",
        "tools": "enable_parallel_execution",
    },
    "0.16.1": {
        "steps": "prompt_tokens_details",
        "agents": "compaction_settings",
        "tools": "project_id",
    },
    "0.16.8": {
        "runs": "conversation_id",
        "steps": "cache_write_tokens cached_input_tokens model_handle reasoning_tokens request_id",
        "messages": "conversation_id",
        "provider_traces": "agent_id agent_tags call_type compaction_settings llm_config org_id run_id source user_id",
    },
}


def tables(version: str) -> dict[str, frozenset[str]]:
    """By table, the columns that a server of this version has."""
    columns = {table: set(names.split()) for table, names in _IN_0_12_0.items()}
    for later in VERSIONS[1 : VERSIONS.index(version) + 1]:
        for table, names in _ADDED[later].items():
            columns[table] |= set(names.split())
    return {table: frozenset(names) for table, names in columns.items()}


def create_statement(version: str, table: str) -> str:
    """A table that the sample does not bring, with the columns of this version and Letta's types."""
    kinds = {
        "created_at": "timestamptz DEFAULT now()",
        "updated_at": "timestamptz DEFAULT now()",
        "is_deleted": "boolean NOT NULL DEFAULT false",
        "request_json": "json NOT NULL",
        "response_json": "json",
        "json_schema": "json",
        "id": "varchar PRIMARY KEY",
    }
    columns = ", ".join(f'"{name}" {kinds.get(name, "varchar")}' for name in sorted(tables(version)[table]))
    return f"CREATE TABLE public.{table} ({columns})"

-- An example of each view, for the data dictionary. `make docs` reads this file; a test runs each.

-- view: turns
-- Models by tokens.
SELECT model, count(*) AS steps, sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens
FROM trajectory.turns WHERE step_run_id IS NULL GROUP BY 1 ORDER BY 3 DESC NULLS LAST;

-- view: messages
-- What people wrote about refunds.
SELECT run_id, timestamp, text FROM trajectory.messages
WHERE kind = 'user' AND text ILIKE '%refund%' ORDER BY timestamp;

-- view: tool_calls
-- Calls that failed, newest first.
SELECT end_time, agent_name, tool, arguments, return_text FROM trajectory.tool_calls
WHERE return_status = 'error' AND NOT denied ORDER BY end_time DESC LIMIT 20;

-- view: tool_usage
-- Tools that fail most.
SELECT tool, sum(calls) AS calls, sum(failed) AS failed, round(avg(error_rate)::numeric, 2) AS error_rate
FROM trajectory.tool_usage GROUP BY 1 ORDER BY failed DESC;

-- view: agent_days
-- Judged success by agent and day.
SELECT agent_name, day, runs, success, judged FROM trajectory.agent_days ORDER BY agent_name, day;

-- view: judging_days
-- Cost of judging by day.
SELECT day, model, calls, cost_usd FROM trajectory.judging_days ORDER BY day DESC, cost_usd DESC;

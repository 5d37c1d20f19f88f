"""Answers and errors as servers write them: (status, headers, body) -> what they amount to."""

import json
import time
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any

import pytest

from evalkit.services.refusals import Refusal, refusal_of, retry_after
from evalkit.services.replies import Reply, end_of, is_lost, read_reply


def openai_error(message: str, code: str | int | None = None, kind: str = "invalid_request_error") -> Any:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def chat(content: Any = "はい", finish: Any = "stop", usage: Any = None, **message: Any) -> dict[str, Any]:
    said = {"role": "assistant", "content": content, **message}
    return {"choices": [{"index": 0, "finish_reason": finish, "message": said}], "usage": usage}


def kind_of(status: int, body: Any, **headers: str) -> str:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = read_reply(status, headers, data)
    return answer.kind if isinstance(answer, Refusal) else answer.status


TOO_LONG = [
    # OpenAI, Azure, DeepSeek, Groq, Cerebras
    (400, openai_error("too long", "context_length_exceeded")),
    (400, openai_error("This model's maximum context length is 8192 tokens. However, you requested 9000.")),
    (400, openai_error("Invalid 'messages[0].content': string too long. Expected a string with maximum "
                       "length 1048576, but got 2000000 instead.", "string_above_max_length")),
    (400, openai_error("Please reduce the length of the messages or completion. Current length is 9000")),
    # vLLM, old and new
    (400, {"object": "error", "message": "The decoder prompt (length 9001) is longer than the maximum model "
           "length of 4096.", "type": "BadRequestError", "param": None, "code": 400}),
    (400, {"object": "error", "message": "The prompt (total length 9001) is too long to fit into the model "
           "(context length 4096).", "code": 40303}),
    (400, openai_error("max_tokens must be at least 1, got -97.", 400, "BadRequestError")),
    (400, openai_error("'max_tokens' or 'max_completion_tokens' is too large: 1000. This model's maximum "
                       "context length is 4096 tokens and your request has 3500 input tokens")),
    # SGLang
    (400, {"message": "Input length (19001 tokens) exceeds the maximum allowed length (14096 tokens). Use a "
           "shorter input.", "code": 400}),
    (400, {"message": "The input (9001 tokens) is longer than the model's context length (4096 tokens)."}),
    # TGI, Together, Hugging Face
    (422, {"error": "Input validation error: `inputs` must have less than 4095 tokens. Given: 9001",
           "error_type": "validation"}),
    (422, {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: "
           "9001 `inputs` tokens and 100 `max_new_tokens`", "error_type": "validation"}),
    # llama.cpp, llama-cpp-python, LM Studio, Ollama
    (400, {"error": {"code": 400, "message": "the request exceeds the available context size",
                     "type": "exceed_context_size_error", "n_ctx": 4096}}),
    (500, openai_error("Requested tokens (9001) exceed context window of 4096", None, "internal")),
    (400, {"error": "Trying to keep the first 9001 tokens when context the overflows."}),
    (500, {"error": "input length exceeds maximum context length"}),
    # Claude, Bedrock, Gemini
    (400, {"type": "error", "error": {"type": "invalid_request_error",
                                      "message": "prompt is too long: 209001 tokens > 200000 maximum"}}),
    (400, openai_error("input length and `max_tokens` exceed context limit: 199999 + 8192 > 200000")),
    (400, {"message": "Input is too long for requested model."}),
    (413, {"type": "error", "error": {"type": "request_too_large", "message": "Request exceeds the size"}}),
    (400, [{"error": {"code": 400, "status": "INVALID_ARGUMENT", "message": "The input token count (1200293) "
                      "exceeds the maximum number of tokens allowed (1048576)."}}]),
    # Mistral, Cohere, xAI, Fireworks, TensorRT-LLM, DashScope, Zhipu, Moonshot, SiliconFlow, litellm
    (400, {"object": "error", "message": "Prompt contains 65673 tokens and 0 draft tokens, too large for "
           "model with 32768 maximum context length", "type": "invalid_request_error", "code": "3051"}),
    (400, {"message": "too many tokens: total number of tokens in the prompt cannot exceed 4081"}),
    (400, {"code": "Client specified an invalid argument",
           "error": "This model's maximum prompt length is 131072 but the request contains 537812 tokens."}),
    (400, openai_error("The prompt is too long: 9001, model maximum context length: 4096")),
    (400, {"error": "Prompt length (9001) exceeds maximum input length (4096)"}),
    (400, openai_error("Range of input length should be [1, 98304]", "invalid_parameter_error")),
    (400, {"error": {"code": "1261", "message": "Prompt 超长"}}),
    (400, openai_error("Invalid request: Your request exceeded model token limit: 8192")),
    (400, {"code": 20015, "message": "length of prompt_tokens (9001) must be less than max_seq_len (4096)"}),
    (400, openai_error("litellm.ContextWindowExceededError: x", "400", "invalid_request_error")),
    (400, openai_error("入力のトークン数が上限 4096 を超えています")),
    # A proxy's own limit, a gateway that passes it on, a server that says it in an answer
    (413, b"<html><head><title>413 Request Entity Too Large</title></head></html>"),
    (200, {"error": {"message": "Provider returned error", "code": 400, "metadata": {
        "raw": json.dumps(openai_error("This endpoint's maximum context length is 4096 tokens."))}}}),
    (200, chat("", {"type": "abort", "message": "The input is longer than the context length"})),
    (200, chat("", "length", {"prompt_tokens": 4096, "completion_tokens": 0})),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body"), TOO_LONG)
def test_a_prompt_that_is_too_long(status: int, body: Any) -> None:
    assert kind_of(status, body) == "overflow"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, openai_error("'max_tokens' is not supported with this model")),
        (
            400,
            openai_error("max_tokens is too large: 9999. This model supports at most 4096 completion tokens"),
        ),
        (400, openai_error("max_tokens: 9999 > 8192, which is the maximum allowed number of output tokens")),
        (400, openai_error("max_tokens must be at least 1, got 0")),
        (400, openai_error("Unknown parameter: 'context_length'", "unknown_parameter")),
        (400, openai_error("Invalid 'stop': array too long. Expected an array with maximum length 4")),
        (422, {"error": "Input validation error: `max_new_tokens` must be <= 512. Given: 1000"}),
        # What pydantic repeats of the request is not read.
        (
            422,
            {
                "detail": [
                    {
                        "loc": ["body", "temperature"],
                        "msg": "Input should be greater than or equal to 0",
                        "input": "what is a context length? too many requests",
                    }
                ]
            },
        ),
    ],
)
def test_what_a_shorter_prompt_would_not_change_is_no_overflow(status: int, body: Any) -> None:
    assert kind_of(status, body) == "request"


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (429, openai_error("slow down", "rate_limit_exceeded"), "rate_limit"),
        (200, {"choices": None, "error": {"message": "Provider returned error", "code": 429}}, "rate_limit"),
        (200, {"choices": None, "error": {"message": "no", "code": "429"}}, "rate_limit"),
        (400, openai_error("Throttling", "Throttling.RateQuota"), "rate_limit"),
        (403, {"error": {"message": "Rate limit exceeded", "code": "rateLimitExceeded"}}, "rate_limit"),
        (413, openai_error("Request too large on tokens per minute (TPM): Limit 6000, Used 5000, "
                           "Requested 2000", "rate_limit_exceeded", "tokens"), "rate_limit"),
        # More than a minute's tokens: no pause helps, it is not asked a hundred times.
        (413, openai_error("Request too large on tokens per minute (TPM): Limit 6000, Requested 9000",
                           "rate_limit_exceeded", "tokens"), "passing"),
        (429, {"message": "Too many tokens, please wait before trying again."}, "rate_limit"),
        (529, {"type": "error", "error": {"type": "overloaded_error", "message": "Over"}}, "rate_limit"),
        (503, openai_error("The engine is currently overloaded, please try again later"), "rate_limit"),
        (500, {"error": {"code": 429, "message": "upstream"}}, "rate_limit"),
        (429, [{"error": {"code": 429, "message": "You exceeded your current quota, please check your plan",
                          "status": "RESOURCE_EXHAUSTED"}}], "rate_limit"),
        (200, {"choices": None, "base_resp": {"status_code": 1002, "status_msg": "RPM limit"}}, "rate_limit"),
        (200, b"<html><title>Too Many Requests</title></html>", "rate_limit"),
        (200, b'event: error\ndata: {"error": {"message": "Rate limit", "code": 429}}\n\n', "rate_limit"),
        (429, openai_error("You exceeded your current quota", "insufficient_quota"), "quota"),
        (402, openai_error("Insufficient Balance", "invalid_request_error", "unknown_error"), "quota"),
        (400, openai_error("Your credit balance is too low to access the API."), "quota"),
        (401, openai_error("Incorrect API key provided", "invalid_api_key"), "key"),
        (400, [{"error": {"code": 400, "message": "API key not valid. Pass a valid API key."}}], "key"),
        (200, {"error": {"message": "User not found.", "code": 401}}, "key"),
        # litellm, as it answers a wrong key (without a database), an unknown model and a spent budget
        (400, openai_error("No connected db.", "400", "no_db_connection"), "key"),
        (400, openai_error("Authentication Error, Invalid proxy server token passed", "400", "None"), "key"),
        (400, openai_error("Authentication Error - Expired Key.", "400", "expired_key"), "key"),
        (400, openai_error("/chat/completions: Invalid model name passed in model=nope. Call `/v1/models` to "
                           "view available models for your key.", "400"), "model"),
        (400, openai_error("400: {'error': '/completions: Invalid model name passed in model=nope. Call "
                           "`/v1/models` to view available models for your key.'}", "400", "None"), "model"),
        (400, openai_error("litellm.BadRequestError: LLM Provider NOT provided.", "400", "None"), "model"),
        (401, openai_error("key not allowed to access model.", "401", "key_model_access_denied"), "model"),
        (400, openai_error("Budget has been exceeded! Current cost: 2", "400", "budget_exceeded"), "quota"),
        (400, openai_error("litellm.BadRequestError: OpenAIException - 1 validation error: 'loc': "
                           "'body.temperature', 'msg': 'Input should be a valid number'", "400"), "request"),
        (404, openai_error("The model `x` does not exist", "model_not_found"), "model"),
        (400, openai_error("Model Not Exist"), "model"),
        (404, {"detail": "Not Found"}, "model"),
        (400, openai_error("The response was filtered", "content_filter"), "filtered"),
        (400, {"error": {"code": "content_filter", "innererror": {"code": "ResponsibleAIPolicyViolation"}}},
         "filtered"),
        (400, openai_error("Content Exists Risk"), "filtered"),
        (400, openai_error("Input data may contain", "data_inspection_failed"), "filtered"),
        (403, {"error": {"code": 403, "message": "Your input was flagged", "metadata": {"reasons": ["x"]}}},
         "filtered"),
        (200, {"choices": [], "promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}, "filtered"),
        (503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}, "passing"),
        (503, openai_error("No available channel for model x", "model_not_found"), "passing"),
        (502, b"<html><body><h1>502 Bad Gateway</h1></body></html>", "passing"),
        (408, b"", "passing"),
        (500, openai_error("Deadline exceeded while the input was read"), "passing"),
        (400, {"error": {"code": 502, "message": "Upstream connection lost"}}, "passing"),
    ],
)  # fmt: skip
def test_other_errors(status: int, body: Any, kind: str) -> None:
    assert kind_of(status, body) == kind


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"choices": None}, "without a choice"),
        ({"choices": []}, "without a choice"),
        ({}, "without a choice"),
        ({"choices": {"0": {}}}, "without a choice"),
        ({"choices": [None]}, "without a choice"),
        ([], "without a choice"),
        (None, "without a choice"),
        ("Internal error", "Internal error"),
        ({"detail": "worker died"}, "worker died"),
        ({"error": "worker died", "choices": [{"text": "はい"}]}, "worker died"),
        ({"choices": [{"error": {"message": "lost", "code": 502}, "message": {"content": ""}}]}, "lost"),
        ({"choices": [{"message": "はい"}]}, "without a message"),
        ({"choices": [{"message": None}]}, "without a message"),
        ({"choices": [{"delta": {"content": "はい"}}]}, "without a message"),
        (chat([{"type": "image_url", "image_url": {"url": "x"}}]), "'image_url'"),
        (chat([{"type": "text", "text": "a"}, {"type": "audio", "text": "b"}]), "'audio'"),
        (chat([7]), "'int'"),
        (chat({"a": 1}), "None"),
        (chat(None, None), "without a word"),
        (chat("", "load"), "without a word"),
        (chat("はい", "error"), "finish reason error"),
        (b'{"id": "x", "choices": [{"message": {"content": "rate limit, context length', "without a choice"),
        (b"<html>busy</html>", "busy"),
        (b'data: {"choices": [{"delta": {"content": "a"}}]}\n\ndata: [DONE]\n', "stream of events"),
        (b'data: {"error": "the shard is gone", "error_type": "generation"}\n\n', "the shard is gone"),
        (b"", "without a choice"),
        (b"[" * 100_000, "without a choice"),
        (b"\xff\xfe\xff", "without a choice"),
    ],
)
def test_what_is_no_answer_is_asked_again_and_says_why(body: Any, said: str) -> None:
    answer = read_reply(200, {}, body if isinstance(body, bytes) else json.dumps(body).encode())
    assert isinstance(answer, Refusal) and answer.kind == "passing"
    assert said in answer.text


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (chat(), "はい"),
        (chat([{"type": "text", "text": "は"}, {"type": "text", "text": "い"}]), "はい"),
        (chat(["は", {"type": "output_text", "text": "い"}]), "はい"),
        (chat([{"type": "thinking", "thinking": []}, {"type": "text", "text": "はい"}]), "はい"),
        (chat(None, refusal="お断り"), "お断り"),
        (chat("はい", None), "はい"),
        (chat("はい", "finished_somehow"), "はい"),
        (chat("はい", "tool_calls", tool_calls=[{"id": "1"}]), "はい"),
        (chat(None, "tool_calls", tool_calls=[{"id": "1"}]), ""),
        (chat(None, "length", {"completion_tokens": 5}, reasoning_content="考え中"), ""),
        (chat(None, "stop", reasoning_content="考え中"), ""),
        (chat("", "stop"), ""),
        (chat(None, None, {"completion_tokens": 1}), ""),
        ({"choices": [{"text": "はい", "finish_reason": None, "logprobs": None}], "error": None}, "はい"),
        ({"choices": [{"text": None, "finish_reason": "stop"}], "id": None, "usage": None}, ""),
        (b"\n \n\n" + json.dumps(chat()).encode(), "はい"),
        (b'{"choices": [{"text": "a", "logprobs": {"token_logprobs": [NaN, -Infinity]}}]}', "a"),
        ("\ufeff" + json.dumps(chat()), "はい"),
    ],
)
def test_answers(body: Any, text: str) -> None:
    data = body.encode() if isinstance(body, str) else body if isinstance(body, bytes) else json.dumps(body)
    answer = read_reply(200, {}, data if isinstance(data, bytes) else data.encode())
    assert isinstance(answer, Reply)
    assert (answer.status, answer.text) == ("ok", text)


def test_parts_of_the_type_thinking_are_the_thought_in_either_form() -> None:
    inner = [{"type": "text", "text": "考"}, {"type": "text", "text": "え"}]
    for given, thought in ((inner, "考え"), ("考え", "考え"), ([], None)):
        parts = [{"type": "thinking", "thinking": given}, {"type": "text", "text": "はい"}]
        reply = read_reply(200, {}, json.dumps(chat(parts)).encode())
        assert isinstance(reply, Reply)
        assert (reply.thought, reply.text) == (thought, "はい")


@pytest.mark.parametrize("empty", [chat(""), chat(" \n"), chat(None), chat(None, reasoning_content="考え")])
def test_a_judgment_without_word_or_thought_is_none_unless_its_length_ended_it(empty: dict[str, Any]) -> None:
    answer = read_reply(200, {}, empty, needs_text=True)
    thought = empty["choices"][0]["message"].get("reasoning_content")
    assert isinstance(answer, Reply) == (thought is not None)
    assert isinstance(answer, Reply) or "without a word" in answer.text
    assert isinstance(read_reply(200, {}, empty), Reply)
    empty["choices"][0]["finish_reason"] = "length"
    assert isinstance(read_reply(200, {}, empty, needs_text=True), Reply)


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 1}, (9, 1)),
        ({"prompt_tokens": "9", "completion_tokens": 1.0}, (9, 1)),
        ({"input_tokens": 9, "output_tokens": 0}, (9, 0)),
        ({"prompt_tokens": None, "completion_tokens": "many"}, (None, None)),
        ({"prompt_tokens": True, "completion_tokens": -1}, (None, None)),
        ({"prompt_tokens": float("nan"), "completion_tokens": float("inf")}, (None, None)),
        ([1], (None, None)),
        (None, (None, None)),
    ],
)
def test_token_counts(usage: Any, counts: tuple[int | None, int | None]) -> None:
    answer = read_reply(200, {}, chat(usage=usage) | {"model": 7})
    assert isinstance(answer, Reply)
    assert (answer.input_tokens, answer.output_tokens, answer.model) == (*counts, None)


@pytest.mark.parametrize(
    ("given", "end"),
    [
        *[(name, "stop") for name in ("stop", "STOP", "eos_token", "end_turn", "COMPLETE", "tool_calls")],
        *[(name, "stop_string") for name in ("stop_sequence", "STOP_SEQUENCE")],
        *[(name, "length") for name in ("length", "max_tokens", "MAX_TOKENS", "model_length", "ERROR_LIMIT",
                                        "model_context_window_exceeded", "maxPredictedTokensReached")],
        *[(name, "filtered") for name in ("content_filter", "SAFETY", "RECITATION", "refusal", "sensitive",
                                          "content_filter: PROHIBITED_CONTENT", "ERROR_TOXIC",
                                          "guardrail_intervened")],
        *[(name, "failed") for name in ("error", "ERROR", "abort", "aborted", "cancelled", "canceled",
                                        "insufficient_system_resource", "network_error", "timeout", "failed",
                                        "MALFORMED_FUNCTION_CALL", "USER_CANCEL", "modelUnloaded",
                                        "server_error", "context canceled", "overloaded")],
        *[(name, None) for name in (None, "", "null", "load", "other")],
    ],
)  # fmt: skip
def test_finish_reasons(given: str | None, end: str | None) -> None:
    assert end_of(given) == end


def test_what_was_kept_and_is_no_answer() -> None:
    assert is_lost("error", "half an ans") and is_lost("stop", "") and is_lost(None, None)
    assert is_lost("content_filter", "[[1]]")
    assert not is_lost("stop", "no rating") and not is_lost("length", "") and not is_lost(None, "[[5]]")


@pytest.mark.parametrize(
    ("headers", "pause"),
    [
        ({"retry-after": "2.5"}, 2.5),
        ({"Retry-After": "2"}, 2),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"x-ms-retry-after-ms": "500"}, 0.5),
        ({"retry-after-ms": "soon", "retry-after": "3"}, 3),
        ({"retry-after": "-5"}, 0),
        ({"retry-after": "1m30s"}, 90),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Thu, 01 Jan 9999999 00:00:00 GMT"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({}, None),
    ],
)
def test_the_pause_of_headers(headers: dict[str, str], pause: float | None) -> None:
    found = retry_after(headers)
    assert found is None if pause is None else found == pytest.approx(pause)


@pytest.mark.parametrize("zone", ["", " GMT", " -0000", " +0900"])
def test_a_date_without_a_zone_is_utc(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    ahead = 9 * 3600 if zone == " +0900" else 0
    text = time.strftime("%a, %d %b %Y %H:%M:%S", time.gmtime(time.time() + 100 + ahead)) + zone
    found = retry_after({"retry-after": text})
    monkeypatch.undo()
    time.tzset()
    assert found == pytest.approx(100, abs=3)


@pytest.mark.parametrize(
    ("headers", "body", "pause"),
    [
        ({"x-ratelimit-reset": "20"}, {}, 20),
        ({"X-RateLimit-Reset-Tokens": "6m0s", "X-RateLimit-Remaining-Tokens": "0",
          "X-RateLimit-Reset-Requests": "23h", "X-RateLimit-Remaining-Requests": "99"}, {}, 360),
        ({"x-ratelimit-reset-requests": "120ms"}, {}, 0.12),
        ({}, openai_error("Rate limit reached. Please try again in 6m0s."), 360),
        ({}, openai_error("Please retry after 22 seconds."), 22),
        ({}, openai_error("Please try again in 20ms. Visit x"), 0.02),
        ({}, {"error": {"code": 429, "details": [{"@type": "RetryInfo", "retryDelay": "39s"}]}}, 39),
        ({}, {"error": {"code": 429, "metadata": {"headers": {"Retry-After": "7"}}}}, 7),
        ({"retry-after": "1", "x-ratelimit-reset": "20"}, openai_error("try again in 9s"), 1),
        ({}, openai_error("slow down"), None),
    ],
)  # fmt: skip
def test_the_pause_of_a_rate_limit(headers: dict[str, str], body: Any, pause: float | None) -> None:
    after = refusal_of(429, headers, body).after
    assert after is None if pause is None else after == pytest.approx(pause)


def test_a_pause_until_a_date() -> None:
    then = time.time() + 600
    iso = datetime.fromtimestamp(then, UTC).isoformat()
    for headers in (
        {"retry-after": formatdate(then, usegmt=True)},
        {"x-ratelimit-reset": str(int(then))},
        {"x-ratelimit-reset": str(int(then * 1000))},
        {"anthropic-ratelimit-tokens-reset": iso, "anthropic-ratelimit-tokens-remaining": "0"},
    ):
        assert refusal_of(429, headers, {}).after == pytest.approx(595, abs=6)
    assert retry_after({"retry-after": formatdate(time.time() - 60, usegmt=True)}) == 0


def test_the_services_words_are_shown() -> None:
    refusal = refusal_of(
        200, {}, {"choices": None, "error": {"message": "Provider returned error", "code": 429}}
    )
    assert (refusal.place, refusal.text) == ("HTTP 200, error 429", "Provider returned error")
    html = refusal_of(502, {}, "<html><style>p {}</style><h1>Bad\n Gateway</h1></html>")
    assert (html.place, html.text) == ("HTTP 502", "Bad Gateway")
    assert "rate" not in refusal_of(400, {}, {"input": "rate limit"}).kind

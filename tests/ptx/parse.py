"""The parser of PTX text."""

from __future__ import annotations

from functools import lru_cache

from .errors import ParseError
from .syntax import (
    SIZES,
    Function,
    Group,
    Immediate,
    Instruction,
    Location,
    Memory,
    Module,
    Negated,
    Operand,
    Register,
    Symbol,
    Variable,
    Vector,
)
from .tokens import LINE_DIRECTIVES, Reader, joined, number

SPACES = (".global", ".shared", ".local", ".const", ".param")


class Parser(Reader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.module = Module()
        self.location: Location | None = None
        self.scopes: list[dict[str, str]] = []  # names of registers, variables and labels -> unique names
        self.scope_count = 0

    # The module

    def parse(self) -> Module:
        while self.at < len(self.tokens):
            if not self.line_directive():
                self.declaration()
        return self.module

    def line_directive(self) -> bool:
        if self.peek() not in LINE_DIRECTIVES:
            return False
        name, rest = self.take(), self.rest_of_line()
        if name == ".version":
            self.module.version = "".join(rest)
        elif name == ".target":
            self.module.target = rest[0]
        elif name == ".file":
            self.module.files[int(rest[0])] = rest[1].strip('"')
        elif name == ".loc":
            inlined = rest.index("inlined_at") if "inlined_at" in rest else None
            place = (int(rest[inlined + 1]), int(rest[inlined + 2])) if inlined is not None else None
            self.location = Location(int(rest[0]), int(rest[1]), place)
        return True

    def declaration(self) -> None:
        extern = False
        while self.peek() in (".visible", ".extern", ".weak", ".common"):
            extern |= self.take() == ".extern"
        word = self.peek()
        if word in (".entry", ".func"):
            self.function(extern)
        elif word in SPACES:
            one = self.variable(extern)
            self.module.variables[one.name] = one
            self.take(";")
        elif word in (".pragma", ".alias"):
            while self.take() != ";":
                pass
        else:
            raise ParseError(f"line {self.tokens[self.at].line}: {word!r} begins no declaration that is known")

    def variable(self, extern: bool = False) -> Variable:
        """`.shared .align 8 .b8 name[64]`, without the semicolon; an initialiser is passed over.

        So variables that have one cannot be used: `Program.address` knows none in global and constant memory.
        """
        space, kind, align, pointer = self.take().lstrip("."), "", 0, False
        initialised = False
        while self.peek().startswith("."):
            word = self.take()
            if word == ".align":
                align = number(self.take()).value
            elif word == ".ptr":
                pointer = True
                while self.peek() in (".global", ".const", ".shared", ".generic"):
                    self.take()
                if self.took(".align"):
                    self.take()
            else:
                kind = word.lstrip(".")
        if kind not in SIZES:
            raise ParseError(f"line {self.tokens[self.at].line}: the type {kind or self.peek()!r} is not known")
        name, size = self.take(), SIZES[kind]
        align = align or size
        while self.took("["):
            size *= 0 if self.peek() == "]" else number(self.take()).value
            self.take("]")
        while self.peek() == "=" or initialised and self.peek() not in (";", ""):
            initialised = bool(self.take())
        return Variable(name, space, kind, size, align, extern, pointer)

    def variables(self) -> list[Variable]:
        """`(.param .u64 a, .param .u32 b)`"""
        found = []
        self.take("(")
        while not self.took(")"):
            found.append(self.variable())
            self.took(",")
        return found

    def function(self, extern: bool) -> None:
        entry = self.take() == ".entry"
        results = self.variables() if not entry and self.peek() == "(" else []
        function = Function(self.take(), entry, results=results)
        if self.peek() == "(":
            function.parameters = self.variables()
        while self.peek().startswith("."):
            name = self.take().lstrip(".")
            if name == "pragma":
                self.take()
                self.took(";")
            else:
                function.directives[name] = self.integers() if self.peek()[:1].isdigit() else ()
        if self.took(";"):
            return  # a declaration; the definition follows
        if extern:
            raise ParseError(f"{function.name} is extern")
        self.body(function)
        self.module.functions[function.name] = function

    # The body of a function

    def body(self, function: Function) -> None:
        self.take("{")
        self.enter()
        while self.scopes:
            if self.line_directive():
                continue
            word = self.peek()
            if self.took("{"):
                self.enter()
            elif self.took("}"):
                self.scopes.pop()
            elif word == ".reg":
                self.registers(function)
            elif word in SPACES:
                one = self.variable()
                one.name = self.declare(one.name)
                function.variables[one.name] = one
                self.take(";")
            elif word == ".pragma":
                while self.take() != ";":
                    pass
            elif self.peek(1) == ":":
                function.labels[self.label(self.take())] = len(function.body)
                self.take(":")
            else:
                function.body.append(self.instruction())
        self.location = None

    def enter(self) -> None:
        """A scope begins: labels are known in all of it, so its own ones are looked for ahead."""
        self.scope_count += 1
        ending = f"@{self.scope_count}" if self.scopes else ""
        names = {"": ending}
        self.scopes.append(names)
        depth, at, statement = 0, self.at, True
        while at < len(self.tokens) and depth >= 0:
            text = self.tokens[at].text
            if text == "{":
                depth += 1
            elif text == "}":
                depth -= 1
            elif depth == 0 and statement and at + 1 < len(self.tokens) and self.tokens[at + 1].text == ":":
                names[text] = text + ending
            statement = text in (";", "{", "}", ":", "\n")
            at += 1

    def declare(self, name: str) -> str:
        self.scopes[-1][name] = name + self.scopes[-1][""]
        return self.scopes[-1][name]

    def label(self, name: str) -> str:
        return self.scopes[-1][name]

    def resolve(self, name: str) -> str:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return name

    def registers(self, function: Function) -> None:
        self.take(".reg")
        kind = self.take().lstrip(".")
        while True:
            name = self.take()
            if self.took("<"):
                for i in range(number(self.take()).value):
                    function.registers[self.declare(f"{name}{i}")] = kind
                self.take(">")
            else:
                function.registers[self.declare(name)] = kind
            if not self.took(","):
                break
        self.take(";")
        self.known = function.registers

    def instruction(self) -> Instruction:
        first = self.at
        line, guard, negated = self.tokens[self.at].line, None, False
        if self.took("@"):
            negated = self.took("!")
            guard = Register(self.resolve(self.take()))
        opcode = self.take()
        operands = []
        while not self.took(";"):
            operands.append(self.operand())
            if self.took("|"):  # two results, such as p|q
                operands[-1] = Vector((operands[-1], self.operand()))
            if self.peek() != ";":
                self.take(",")
        text = joined([one.text for one in self.tokens[first : self.at]])
        return Instruction(opcode, tuple(operands), guard, negated, line, self.location, text)

    def operand(self) -> Operand:
        text = self.peek()
        if text in ("{", "("):
            closing = "}" if self.take() == "{" else ")"
            parts = []
            while not self.took(closing):
                parts.append(self.operand())
                self.took(",")
            return Vector(tuple(parts)) if closing == "}" else Group(tuple(parts))
        if text == "[":
            return self.memory()
        if self.took("!"):
            return Negated(Register(self.resolve(self.take())))
        if text[0].isdigit() or text[0] == "-":
            if self.took("-"):
                return Immediate(-number(self.take()).value)
            return number(self.take())
        name = self.resolve(self.take())
        if name in self.known or name.startswith("%"):
            return Register(name)
        return Symbol(name, self.offset())

    def offset(self) -> int:
        if self.took("+"):
            return number(self.take()).value
        if self.peek().startswith("-") and self.peek() != "-":
            return number(self.take()).value
        return 0

    def memory(self) -> Memory:
        self.take("[")
        base = self.operand()
        offset = self.offset()
        coordinates: tuple[Operand, ...] = ()
        if self.took(","):
            vector = self.operand()
            coordinates = vector.parts if isinstance(vector, Vector) else (vector,)
        self.take("]")
        if isinstance(base, Symbol) and base.offset:
            base, offset = Symbol(base.name), offset + base.offset
        if not isinstance(base, Register | Symbol | Immediate):
            raise ParseError(f"line {self.tokens[self.at - 1].line}: this is no address")
        return Memory(base, offset, coordinates)


@lru_cache(maxsize=16)
def parse(text: str) -> Module:
    """PTX text -> its module, kept for the next call, so not to be changed. Raises ParseError with the line."""
    parser = Parser(text)
    parser.known = {}
    try:
        return parser.parse()
    except IndexError:
        raise ParseError("the text ends where more is expected") from None
    except ValueError as problem:
        raise ParseError(f"line {parser.tokens[parser.at - 1].line}: {problem}") from None
